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
local owner, inbox, kept = KEYS[1], KEYS[2], KEYS[3]
local token, after, count, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local FIRST_PAGE = 16 -- entries that are read at once: more, if they are small
local OVERHEAD = 100 -- bytes that a message costs besides its own

local stored = redis.pcall('HGET', owner, 'token') or ''
if type(stored) == 'table' then return redis.error_reply('WRONGTYPE ' .. owner) end
if stored ~= token then return {'FENCED', stored} end
local length = redis.pcall('XLEN', inbox)
if type(length) == 'table' then return redis.error_reply('WRONGTYPE ' .. inbox) end
local noted = redis.pcall('GET', kept) or ''
if type(noted) == 'table' then return redis.error_reply('WRONGTYPE ' .. kept) end

local reply, bytes, page_size = {'OK', ''}, 0, math.min(FIRST_PAGE, count)
while true do
  local page = redis.call('XRANGE', inbox, '(' .. after, '+', 'COUNT', page_size)
  for n = 1, #page do
    after = page[n][1]
    reply[#reply + 1], reply[#reply + 2] = after, page[n][2]
    bytes = bytes + OVERHEAD
    for _, word in ipairs(page[n][2]) do bytes = bytes + #word end
    if bytes >= limit then
      reply[2] = '1'
      break
    end
  end
  local read = (#reply - 2) / 2
  if reply[2] == '' and #page == page_size and read >= count then reply[2] = '1' end
  if reply[2] == '1' or #page < page_size then break end
  page_size = math.max(1, math.min(count - read, 4 * page_size, math.floor((limit - bytes) * read / bytes)))
end

local in_hand = string.match(noted, '^(%d+) ') or '0'
if reply[2] == '' then in_hand = string.format('%.0f', length) end
local note = in_hand .. ' ' .. after
if note ~= noted and (noted ~= '' or note ~= '0 0-0') then redis.call('SET', kept, note) end
return reply
