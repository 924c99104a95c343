#!lua flags=allow-oom
-- acquire_shard: become a shard's owner, if its owner is still the one that the caller saw.
--
-- The new token is `epoch:nonce`; every later commit with an older token is refused. The epoch follows the daemons'
-- clocks, so that it still grows when a failover has lost the newest ones, also to a server whose clock is behind; the
-- nonce distinguishes two owners to whom a failover gave the same epoch. What the old owner had read counts as unread
-- from now on: the new one reads the inbox from its first message, so all that isn't committed is read again. Which
-- message was the last one that an owner had in hand when it ended stays known until one of the next owners has been
-- through those: it clears that when it releases the shard.
-- The last outbox number that this server has is noted, with those of the owners before (`sent`): what a failover has
-- lost of an owner's messages is behind them.
-- Safe to run twice: a nonce that already holds the shard gets the same answer.
--
-- KEYS   owner, inbox, kept, outbox
-- ARGV   expected (the token that the caller saw), nonce, holder, now
-- RETURNS OK token clock delivered final asleep / CONFLICT token holder (of the present owner) / WRONGTYPE key
-- `delivered`: the last message that is suspect, because the old owner had read it, or one before who ended without a
-- release; '' for none. `final`: the id of the old owner's last commit, '' for none. `asleep`: how many runs were moved out, '' for
-- none
-- @include shared/clock
-- @include shared/holds
local owner, inbox, kept, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FORMER_OWNERS = 8

-- The later one of two ids of messages. '' is before all.
local function later(one, other)
  local ms, number = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  if not ms or not other_ms then return ms and one or other end
  if ms == other_ms then return tonumber(number) > tonumber(other_number) and one or other end
  return tonumber(ms) > tonumber(other_ms) and one or other
end

local expected, nonce, holder = ARGV[1], ARGV[2], ARGV[3]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end -- nobody could read it
if not holds(kept, 'string') then return redis.error_reply('WRONGTYPE ' .. kept) end
if not holds(outbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. outbox) end
local stored = redis.call('HMGET', owner, 'token', 'holder', 'clock', 'commit', 'sent', 'delivered', 'asleep')
local token = stored[1] or ''
local clock = shard_clock(ARGV[4], stored[3])
local epoch, holding = string.match(token, '^(%d+):(.*)$')
if holding == nonce then
  local before = redis.call('HMGET', owner, 'delivered', 'final')
  return {'OK', token, string.format('%.0f', clock), before[1] or '', before[2] or '', stored[7] or ''}
end
if token ~= expected then return {'CONFLICT', token, stored[2] or ''} end

local delivered = stored[6] or ''
if holding ~= '' then delivered = later(string.match(redis.call('GET', kept) or '', '^%d+ (.*)$') or '', delivered) end
local final = stored[4] or ''
local now = string.format('%.0f', clock)
local next_token = string.format('%.0f', math.max(tonumber(epoch or 0) + 1, clock)) .. ':' .. nonce
redis.call('HSET', owner,
  'token', next_token, 'holder', holder, 'clock', now, 'delivered', delivered, 'final', final)
redis.call('HDEL', owner, 'commit')
local about = redis.pcall('XINFO', 'STREAM', outbox) -- an error if nothing was ever sent
for i = 1, #about, 2 do
  if about[i] == 'last-generated-id' then
    local sent, count = about[i + 1], 1
    for number in string.gmatch(stored[5] or '', '%S+') do
      if number ~= about[i + 1] and count < FORMER_OWNERS then sent, count = sent .. ' ' .. number, count + 1 end
    end
    redis.call('HSET', owner, 'sent', sent)
  end
end
redis.call('DEL', kept)
return {'OK', next_token, now, delivered, final, stored[7] or ''}
