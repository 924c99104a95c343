-- current_entry: which entry of a queue partition is a step's newest attempt, and removing an entry.
-- Of the attempt: when its run was created (which distinguishes it from an earlier run of the same id), its number, and
-- whether it was revoked.
local function current_entry(steps, step)
  local stored = redis.call('HGET', steps, step)
  if not stored then return nil end
  local entry, created, attempt, mark = string.match(stored, '^(%S+) (%d+) (%d+) (%a+)$')
  return entry, tonumber(created), tonumber(attempt), mark == 'revoked'
end
local function encode_current_entry(entry, created, attempt, mark)
  return string.format('%s %.0f %.0f %s', entry, created, attempt, mark)
end
local function drop_entry(stream, details, group, entry)
  redis.pcall('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
  redis.call('HDEL', details, entry)
end
-- The value of a field of an entry.
local function field_of(fields, name)
  for n = 1, #fields, 2 do
    if fields[n] == name then return fields[n + 1] end
  end
end
