#!lua flags=allow-oom
-- read_inbox: read the messages behind the last one that the owner has read, as many as fit into one reply.
--
-- They stay in the inbox until they are committed. `kept` notes how many of those in the inbox the owner has read once it
-- has read all, so that the next message rings (`shared/inbox.lua`), and which is the last that it has read: the next
-- owner learns what this one had in hand. As long as there are more, the owner goes on reading without a ring.
-- Safe to run twice: until the owner has an answer, it asks for the messages behind the same one.
--
-- KEYS   owner, inbox, kept
-- ARGV   token, after (the last message that the owner has read), count, limit (bytes)
-- RETURNS OK more ('1' if there may be more messages, '' if these are all), then for each message: entry,
--         then a list of fields and values
--         / FENCED token (of the present owner) / WRONGTYPE key
-- @include shared/entries
local owner, inbox, kept = KEYS[1], KEYS[2], KEYS[3]
local token, after, count, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local stored = redis.pcall('HGET', owner, 'token') or ''
if type(stored) == 'table' then return redis.error_reply('WRONGTYPE ' .. owner) end
if stored ~= token then return {'FENCED', stored} end
local length = redis.pcall('XLEN', inbox)
if type(length) == 'table' then return redis.error_reply('WRONGTYPE ' .. inbox) end
local noted = redis.pcall('GET', kept) or ''
if type(noted) == 'table' then return redis.error_reply('WRONGTYPE ' .. kept) end

local reply = {'OK', ''}
local more, last = append_entries(reply, inbox, after, limit, 16, count)
if more then reply[2] = '1' end

local in_hand = more and (string.match(noted, '^(%d+) ') or '0') or string.format('%.0f', length)
local note = in_hand .. ' ' .. last
if note ~= noted and (noted ~= '' or note ~= '0 0-0') then redis.call('SET', kept, note) end
return reply
