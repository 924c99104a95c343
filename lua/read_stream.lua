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
-- @include shared/entries
-- @include shared/holds
local log, after, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])

if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
local reply = {''}
if append_entries(reply, log, after, limit, 4, math.huge) then reply[1] = '1' end
return reply
