#!lua flags=allow-oom
-- claim_position: become the consumer that reads a shard for a group, if it is still had by the one that the caller saw.
--
-- Safe to run twice.
--
-- KEYS   positions
-- ARGV   group, identity, expected (the token that the caller has seen), nonce, holder (the caller)
-- RETURNS OK token offset lost ('' for nothing) / CONFLICT token holder / MISSING (the group has no position here)
--         / WRONGTYPE key
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
local positions, group, identity, expected, nonce, holder = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
local found, offset, read, token, present = position_of(redis.call('HGET', positions, group))
if found ~= identity then return {'MISSING'} end
local mine = string.format('%.0f:', tonumber(string.match(expected, '^%d+') or 0) + 1) .. nonce
if token ~= mine then
  if token ~= expected then return {'CONFLICT', token, present} end
  put_position(positions, group, identity, offset, read, mine, holder)
end
return {'OK', mine, offset, redis.call('HGET', positions, group .. '/lost') or ''}
