#!lua flags=allow-oom
-- acquire_shard: become a shard's owner, if its owner is still the one that the caller saw.
--
-- The new token is `epoch:nonce`; every later commit with an older token is refused. The epoch follows the daemons'
-- clocks, so that it still grows when a failover has lost the newest ones, also to a server whose clock is behind; the nonce distinguishes two owners to whom a failover
-- gave the same epoch. The old owner's consumer group is destroyed: a blocked read of a paused process would otherwise
-- be served first and swallow messages. The new group starts at 0, so all that isn't committed is read again.
-- Safe to run twice: a nonce that already holds the shard gets the same answer.
--
-- KEYS   owner, inbox
-- ARGV   expected (the token that the caller saw), nonce, holder, group, now
-- RETURNS OK token clock delivered final / CONFLICT token holder (of the present owner) / WRONGTYPE key
-- `delivered`: the last message that the old owner had read, `final`: the id of its last commit; '' for none
-- @include shared/clock
-- @include shared/holds
local owner, inbox = KEYS[1], KEYS[2]
local expected, nonce, holder, group = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
local stored = redis.call('HMGET', owner, 'token', 'holder', 'group', 'clock', 'commit')
local token = stored[1] or ''
local clock = shard_clock(ARGV[5], stored[4])
local epoch, holding = string.match(token, '^(%d+):(.*)$')
if holding == nonce then
  local before = redis.call('HMGET', owner, 'delivered', 'final')
  return {'OK', token, string.format('%.0f', clock), before[1] or '', before[2] or ''}
end
if token ~= expected then return {'CONFLICT', token, stored[2] or ''} end

local delivered, final = '', stored[5] or ''
if stored[3] and redis.call('EXISTS', inbox) == 1 then
  for _, description in ipairs(redis.call('XINFO', 'GROUPS', inbox)) do
    local facts = {}
    for i = 1, #description, 2 do facts[description[i]] = description[i + 1] end
    if facts.name == stored[3] then delivered = facts['last-delivered-id'] end
  end
  redis.call('XGROUP', 'DESTROY', inbox, stored[3])
end
if stored[3] ~= group then redis.pcall('XGROUP', 'DESTROY', inbox, group) end
redis.call('XGROUP', 'CREATE', inbox, group, '0', 'MKSTREAM')
local now = string.format('%.0f', clock)
local next_token = string.format('%.0f', math.max(tonumber(epoch or 0) + 1, clock)) .. ':' .. nonce
redis.call('HSET', owner,
  'token', next_token, 'holder', holder, 'group', group, 'clock', now, 'delivered', delivered, 'final', final)
redis.call('HDEL', owner, 'commit')
return {'OK', next_token, now, delivered, final}
