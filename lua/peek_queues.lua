#!lua flags=no-writes
-- peek_queues: return how many attempts wait in a shard's partitions of queues, and how many workers have.
--
-- Reads only. `entry`: the first one that no worker has read, '' if there is none. Asked for an entry of the stream: how
-- many `before` it wait (-1: not asked, or it doesn't wait, or so many or large ones are before it that they aren't
-- counted), and which consumer has claimed it, so many ms ago (`idle`; '' and -1 if none has, or the user may not see).
--
-- KEYS   for each queue: stream
-- ARGV   group, then for each queue: asked (an entry, '' for none)
-- RETURNS for each queue: waiting (-1 for a key of another type) claimed entry before consumer idle
local group = ARGV[1]
local MOST, BYTES = 1000, 1000000 -- entries that are counted at most, and their bytes, which come with them

local function count_between(stream, first, last)
  local count, bytes, from, size = 0, 0, first, 4
  while count <= MOST and bytes < BYTES do
    local page = redis.call('XRANGE', stream, from, '(' .. last, 'COUNT', size)
    for _, found in ipairs(page) do
      count = count + 1
      for _, value in ipairs(found[2]) do bytes = bytes + #value end
      from = '(' .. found[1]
    end
    if #page < size then return count <= MOST and count or -1 end
    size = math.max(1, math.min(128, 2 * size, math.floor((BYTES - bytes) * count / math.max(1, bytes))))
  end
  return -1
end

local reply = {}
for n, stream in ipairs(KEYS) do
  local entries = redis.pcall('XLEN', stream)
  local asked = ARGV[n + 1]
  local claimed, first, before, consumer, idle = 0, '', -1, '', -1
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
    if asked ~= '' then
      local mine = redis.pcall('XPENDING', stream, group, asked, asked, 1)
      if not mine.err and mine[1] then
        consumer, idle = mine[1][2], mine[1][3]
      elseif first ~= '' then
        before = count_between(stream, first, asked)
      end
    end
  end
  local facts = {is_foreign and -1 or math.max(0, entries - claimed), claimed, first, before, consumer, idle}
  for i = 1, #facts do reply[#reply + 1] = facts[i] end
end
return reply
