-- inbox: put messages into a shard's inbox, and ring for its owner. The bell is the sharded channel of the inbox's name.
--
-- The owner hears only rings, so the rule is exact: who adds a message when the owner has read all that there are, rings.
-- `kept` says how many of those in the inbox it has read: they stay until their commit, which counts them down, and some
-- stay for long. Behind the first unread message nobody rings again: the owner reads all that there are.

-- How the inbox is. An error reply if a key is of another type.
local function open_inbox(inbox, kept)
  local length = redis.pcall('XLEN', inbox)
  if type(length) == 'table' then return redis.error_reply('WRONGTYPE ' .. inbox) end
  local stored = redis.pcall('GET', kept)
  if type(stored) == 'table' then return redis.error_reply('WRONGTYPE ' .. kept) end
  local in_hand = tonumber(string.match(stored or '', '^(%d+) ')) or 0
  return {key = inbox, length = length, is_read = length <= in_hand}
end

local function put_message(inbox, ...)
  redis.call('XADD', inbox.key, '*', ...)
  inbox.length = inbox.length + 1
  if inbox.is_read then
    redis.pcall('SPUBLISH', inbox.key, '')
    inbox.is_read = false
  end
end
