-- place: where a queue partition has a step: the entry of its newest attempt, when the step's run was created (which
-- tells it from an earlier run of its id), the attempt, and whether it was revoked.
local function place_of(steps, step)
  local stored = redis.call('HGET', steps, step)
  if not stored then return nil end
  local entry, created, attempt, mark = string.match(stored, '^(%S+) (%d+) (%d+) (%a+)$')
  return entry, tonumber(created), tonumber(attempt), mark == 'revoked'
end
local function as_place(entry, created, attempt, mark)
  return string.format('%s %.0f %.0f %s', entry, created, attempt, mark)
end
local function is_pending(stream, group, entry)
  local found = redis.pcall('XPENDING', stream, group, entry, entry, 1)
  return not found.err and found[1] ~= nil
end
local function drop_entry(stream, details, group, entry)
  redis.pcall('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
  redis.call('HDEL', details, entry)
end
