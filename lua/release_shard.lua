#!lua flags=allow-oom
-- release_shard: give up a shard, so that the next owner does not have to wait until this one is considered dead.
--
-- The epoch stays; only the nonce is removed. Safe to run twice: the second time the token doesn't match any more.
--
-- KEYS   owner
-- ARGV   token
-- RETURNS OK / FENCED token
local stored = redis.call('HGET', KEYS[1], 'token') or ''
if stored ~= ARGV[1] then return {'FENCED', stored} end
redis.call('HSET', KEYS[1], 'token', string.match(stored, '^%d+') .. ':', 'holder', '')
return {'OK'}
