#!lua flags=allow-oom
-- store_details: store what running steps of a shard have reported last, for the attempts after them.
--
-- The commit that records the outcome deletes them again. One that has arrived before this call can't, so the caller
-- looks afterwards: '' in place of details deletes what has been stored too late. Safe to run twice.
--
-- KEYS   owner, details
-- ARGV   token, then for each step: step, details
-- RETURNS OK / FENCED token (of the present owner) / WRONGTYPE key
-- @include shared/holds
local owner, details = KEYS[1], KEYS[2]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
local stored = redis.call('HGET', owner, 'token') or ''
if stored ~= ARGV[1] then return {'FENCED', stored} end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', details, ARGV[i])
  else redis.call('HSET', details, ARGV[i], ARGV[i + 1]) end
end
return {'OK'}
