#!lua flags=no-writes
-- peek_queues: return how many attempts wait in a shard's partitions of queues, and how many workers have.
--
-- Reads only. `entry`: the first one that no worker has read, '' if there is none.
--
-- KEYS   for each queue: stream
-- ARGV   group
-- RETURNS for each queue: waiting (-1 for a key of another type) claimed entry
local group = ARGV[1]

local reply = {}
for _, stream in ipairs(KEYS) do
  local entries = redis.pcall('XLEN', stream)
  local claimed, first = 0, ''
  local is_foreign = type(entries) ~= 'number'
  if not is_foreign and entries > 0 then
    local read = '-'
    for _, facts in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      local fact = {}
      for i = 1, #facts, 2 do fact[facts[i]] = facts[i + 1] end
      if fact.name == group then claimed, read = fact.pending, '(' .. fact['last-delivered-id'] end
    end
    if entries > claimed then
      local found = redis.call('XRANGE', stream, read, '+', 'COUNT', 1)
      first = found[1] and found[1][1] or ''
    end
  end
  reply[#reply + 1] = is_foreign and -1 or math.max(0, entries - claimed)
  reply[#reply + 1], reply[#reply + 2] = claimed, first
end
return reply
