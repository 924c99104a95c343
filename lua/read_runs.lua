#!lua flags=no-writes
-- read_runs: read the records of runs, as much of them as fits into one reply.
--
-- A record that fits is returned whole. One that doesn't ends with the element that reaches the limit; the caller asks
-- again for the rest, and for the runs behind it, which are returned without elements. Only the shard's owner writes
-- records, so they don't change in between. A key of another type is an error of that run only.
-- Reads only.
--
-- KEYS   for each run: run
-- ARGV   limit (bytes), then for each run: first (position in the record)
-- RETURNS for each run: next (position of the first element that is missing, '' for none, '!' for an error),
--         then a list of elements (or the error)
local limit = tonumber(ARGV[1])
local FEWEST, MOST = 4, 256 -- elements that are read at once from a large record: more, if they are small
local OVERHEAD = 100 -- bytes that an element of it costs besides its own

local function read_some(run, at, room)
  local found, bytes, few, following = {}, 0, FEWEST, ''
  while bytes < room do
    local page = redis.call('LRANGE', run, at, at + few - 1)
    for n = 1, #page do
      found[#found + 1] = page[n]
      bytes = bytes + #page[n] + OVERHEAD
      at = at + 1
      if bytes >= room then break end
    end
    if #page < few and bytes < room then return found, bytes, '' end
    few = math.max(1, math.min(MOST, 2 * few, math.floor((room - bytes) * #found / bytes)))
  end
  return found, bytes, string.format('%.0f', at)
end

local reply, size = {}, 0
for i, run in ipairs(KEYS) do
  local first, following, elements, bytes = ARGV[i + 1], ARGV[i + 1], {}, 0
  if redis.call('TYPE', run).ok == 'none' then
    following = ''
  elseif redis.call('TYPE', run).ok ~= 'list' then
    following, elements = '!', {'WRONGTYPE ' .. run}
  elseif size < limit then
    local whole = redis.pcall('MEMORY', 'USAGE', run, 'SAMPLES', 0) -- of the key, however it is stored
    if type(whole) == 'number' and size + whole <= limit then
      following, elements, bytes = '', redis.call('LRANGE', run, first, -1), whole
    else
      elements, bytes, following = read_some(run, tonumber(first), limit - size)
    end
  end
  size = size + bytes
  reply[2 * i - 1], reply[2 * i] = following, elements
end
return reply
