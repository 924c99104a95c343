#!lua flags=allow-oom
-- release_shard: give a shard back, so that the next owner needn't wait for a death.
--
-- The epoch stays; only the nonce goes. Safe to run twice: the second time the token doesn't match any more.
--
-- KEYS   owner
-- ARGV   token
-- RETURNS OK / FENCED token
local stored = redis.call('HGET', KEYS[1], 'token') or ''
if stored ~= ARGV[1] then return {'FENCED', stored} end
redis.call('HSET', KEYS[1], 'token', string.match(stored, '^%d+') .. ':', 'holder', '')
return {'OK'}
