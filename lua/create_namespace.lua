#!lua
-- create_namespace: create the namespace's meta record unless it exists; the first caller decides.
--
-- Safe to run twice: the record never changes afterwards.
--
-- KEYS   meta
-- ARGV   shards, partition, schema
-- RETURNS shards partition schema, as stored / WRONGTYPE key
-- @include shared/holds
local meta = KEYS[1]
if not holds(meta, 'hash') then return redis.error_reply('WRONGTYPE ' .. meta) end
if redis.call('EXISTS', meta) == 0 then
  redis.call('HSET', meta, 'shards', ARGV[1], 'partition', ARGV[2], 'schema', ARGV[3])
end
return redis.call('HMGET', meta, 'shards', 'partition', 'schema')
