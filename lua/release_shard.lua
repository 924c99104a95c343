#!lua flags=allow-oom
-- release_shard: give up a shard, so that the next owner does not have to wait until this one is considered dead.
--
-- Attempts of steps that the caller goes on running are recorded with it as their host: the next owner doesn't start
-- them again, but waits for their outcomes. So are runs whose code may end its process. The epoch stays; only the nonce
-- is removed. Safe to run twice: the second time the token doesn't match any more.
-- `last` is '' for a call that only records: thousands of steps are recorded before, in portions.
-- `delivered` is the last message that is still suspect, because an owner before the caller had it in hand when it ended
-- ('' for none, 0-0 if something else is): the next owner goes carefully, too.
--
-- KEYS   owner, steps
-- ARGV   token, last, delivered, then for each lent step: step, host, created, attempt
-- RETURNS OK / FENCED token / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
local owner, steps = KEYS[1], KEYS[2]
local token = ARGV[1]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
local stored = redis.call('HGET', owner, 'token') or ''
if stored ~= token then return {'FENCED', stored} end
for i = 4, #ARGV, 4 do
  redis.call('HSET', steps, ARGV[i],
    encode_current_entry(ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), 'wanted'))
end
if ARGV[2] ~= '' then
  redis.call('HSET', owner, 'token', string.match(stored, '^%d+') .. ':', 'holder', '', 'delivered', ARGV[3])
end
return {'OK'}
