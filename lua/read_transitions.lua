#!lua flags=no-writes
-- read_transitions: read transitions of runs by their numbers, as many as fit into one reply.
--
-- For readers of the log, which has large payloads by this reference only. A transition is gone when its run was
-- forgotten or has begun a new generation, when another run has the id, or when a reducer's record has only newer ones.
-- At least the first is read. Reads only.
--
-- KEYS   for each transition: run
-- ARGV   limit (bytes), then for each transition: created, number
-- RETURNS for each transition: the transition, '' if it is gone, or a dash if it is for the next call
local limit, size = tonumber(ARGV[1]), 0
local reply = {}
for i, run in ipairs(KEYS) do
  if size >= limit then
    reply[i] = '-' -- no transition begins with it: they are MessagePack arrays
  else
    local header = redis.pcall('LINDEX', run, 0)
    local version, created = string.match(type(header) == 'string' and header or '', '^%a+ (%d+) %S+ (%d+) ')
    local found = false
    if created == ARGV[2 * i] then
      local from_end = tonumber(version) - tonumber(ARGV[2 * i + 1]) + 1 -- the last one is the header's version
      if from_end >= 1 and from_end <= redis.call('LLEN', run) - 2 then -- 2: header and state
        found = redis.call('LINDEX', run, -from_end)
      end
    end
    reply[i] = found or ''
    size = size + #reply[i]
  end
end
return reply
