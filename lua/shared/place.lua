-- place: where a queue partition has a step: the entry of its newest attempt, the attempt, and whether it was revoked.
local function place_of(steps, step)
  local stored = redis.call('HGET', steps, step)
  if not stored then return nil end
  local entry, attempt, mark = string.match(stored, '^(%S+) (%d+) (%a+)$')
  return entry, tonumber(attempt), mark == 'revoked'
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
