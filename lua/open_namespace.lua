#!lua flags=allow-oom
-- open_namespace: create the namespace's meta record unless it exists, and register the workflows of an app.
--
-- The first caller decides. The identity is that of the data: who knows it finds out that they were deleted, or that the
-- server was replaced by one without them. Works when memory is short: a daemon that starts then helps to free it.
-- Safe to run twice: the record never changes afterwards.
--
-- KEYS   meta, workflows
-- ARGV   shards, partition, schema, identity, then for each workflow: workflow, description
-- RETURNS shards partition schema identity, as stored / WRONGTYPE key
-- @include shared/holds
local meta, workflows = KEYS[1], KEYS[2]
if not holds(meta, 'hash') then return redis.error_reply('WRONGTYPE ' .. meta) end
if #ARGV > 4 and not holds(workflows, 'hash') then return redis.error_reply('WRONGTYPE ' .. workflows) end
if redis.call('EXISTS', meta) == 0 then
  redis.call('HSET', meta, 'shards', ARGV[1], 'partition', ARGV[2], 'schema', ARGV[3])
end
redis.call('HSETNX', meta, 'identity', ARGV[4])
for i = 5, #ARGV, 2 do redis.call('HSET', workflows, ARGV[i], ARGV[i + 1]) end
return redis.call('HMGET', meta, 'shards', 'partition', 'schema', 'identity')
