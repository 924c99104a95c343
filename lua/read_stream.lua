#!lua flags=no-writes
-- read_stream: read entries of a stream, as much of them as fits into one reply.
--
-- For a shard's log and outbox at a takeover: an entry may have a hundred bytes or megabytes, so a number of entries is
-- no limit. At least one entry is returned, if there is one. Reads only.
--
-- KEYS   log (or outbox)
-- ARGV   after (the entry behind which to begin), limit (bytes)
-- RETURNS more ('1' if there may be more entries, '' if these are all), then for each entry: entry,
--         then a list of fields and values / WRONGTYPE key
-- @include shared/holds
local log, after, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local FEWEST, MOST = 4, 256 -- entries that are read at once: more, if they are small
local OVERHEAD = 100 -- bytes that an entry costs besides its own

if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
local reply, bytes, few = {''}, 0, FEWEST
while true do
  local page = redis.call('XRANGE', log, '(' .. after, '+', 'COUNT', few)
  for n = 1, #page do
    after = page[n][1]
    reply[#reply + 1], reply[#reply + 2] = after, page[n][2]
    bytes = bytes + OVERHEAD
    for _, word in ipairs(page[n][2]) do bytes = bytes + #word end
    if bytes >= limit then
      reply[1] = '1'
      return reply
    end
  end
  if #page < few then return reply end
  few = math.max(1, math.min(MOST, 2 * few, math.floor((limit - bytes) * #reply / 2 / bytes)))
end
