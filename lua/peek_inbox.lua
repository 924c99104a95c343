#!lua flags=no-writes
-- peek_inbox: return how many messages a shard's inbox has, and which is the first, without reading them.
--
-- Reads only.
--
-- KEYS   inbox
-- ARGV   (none)
-- RETURNS count entry ('' when there is none) / WRONGTYPE key
local inbox = KEYS[1]

local count = redis.pcall('XLEN', inbox)
if type(count) == 'table' then return redis.error_reply('WRONGTYPE ' .. inbox) end
local first = redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)
return {count, first[1] and first[1][1] or ''}
