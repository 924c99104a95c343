#!lua
-- wake_run: put a run that was moved out of memory back, as it was, with its entries in listings and on the agenda.
--
-- `expected`: what its bucket has of it, byte for byte, which names the object from which the rest comes. A run that is
-- there, or another one of its id, stays as it is.
-- Safe to run twice: the second time the bucket has nothing of it. Refused when memory is short: it sleeps on, and what
-- comes for it waits in the inbox.
--
-- KEYS   owner, agenda, run, index, tenant_index, published, asleep, then for each attribute: attribute_index
-- ARGV   token, expected, header, state, transitions (how many), values (how many), then for each transition: transition;
--        for each value: key, value
-- RETURNS OK / CONFLICT entry (what the bucket has; '' for nothing) / FENCED token / BADHEADER header / WRONGTYPE key
-- @include shared/asleep
-- @include shared/holds
-- @include shared/run_id
local owner, agenda, run, index, tenant_index, published, bucket = unpack(KEYS, 1, 7)
local token, expected, header, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local transitions, values = tonumber(ARGV[5]), tonumber(ARGV[6])
local FIXED_KEYS, FIXED_ARGS = 7, 6
local CHUNK = 1000 -- arguments of one command, an even number: `unpack` fails past some thousands

local stored = redis.pcall('HGET', owner, 'token') or ''
if type(stored) == 'table' then return redis.error_reply('WRONGTYPE ' .. owner) end
if stored ~= token then return {'FENCED', stored} end
if not holds(agenda, 'zset') then return redis.error_reply('WRONGTYPE ' .. agenda) end
if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(published, 'hash') then return redis.error_reply('WRONGTYPE ' .. published) end
if not holds(bucket, 'hash') then return redis.error_reply('WRONGTYPE ' .. bucket) end
if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
for i = FIXED_KEYS + 1, #KEYS do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local id = string.sub(run, run_id_begins(owner))
local entry = redis.call('HGET', bucket, id) or ''
if entry ~= expected or entry == '' then return {'CONFLICT', entry} end
local created, version, due = string.match(entry, ENTRY)
local of_version, of_created, tenant = string.match(header, '^running (%d+) %S+ (%d+) %S+ %S+ (%S+)')
if not created or of_version ~= version or of_created ~= created then return redis.error_reply('BADHEADER ' .. header) end
if redis.call('EXISTS', run) == 1 then -- only a server that somebody has restored in part has both: the record is newer
  redis.call('HDEL', bucket, id)
else
  redis.call('RPUSH', run, header, state)
  local behind = FIXED_ARGS + transitions -- the last transition
  for from = FIXED_ARGS + 1, behind, CHUNK do
    redis.call('RPUSH', run, unpack(ARGV, from, math.min(from + CHUNK - 1, behind)))
  end
  redis.call('UNLINK', published)
  for from = behind + 1, behind + 2 * values, CHUNK do
    redis.call('HSET', published, unpack(ARGV, from, math.min(from + CHUNK - 1, behind + 2 * values)))
  end
  redis.call('ZADD', index, created, id)
  if tenant ~= '-' then redis.call('ZADD', tenant_index, created, id) end
  for i = FIXED_KEYS + 1, #KEYS do redis.call('ZADD', KEYS[i], created, id) end
  if due ~= '-' then redis.call('ZADD', agenda, due, id) end
  redis.call('HDEL', bucket, id)
end
redis.call('HINCRBY', owner, 'asleep', -1)

if due == '-' then return {'OK'} end
local first -- of those that are left
for _, other in ipairs(redis.call('HVALS', bucket)) do
  local at = string.match(other, '^%d+ %d+ (%d+)')
  if at == due then return {'OK'} end
  if at and (not first or tonumber(at) < first) then first = tonumber(at) end
end
if first then redis.call('ZADD', agenda, string.format('%.0f', first), bucket_member(bucket))
else redis.call('ZREM', agenda, bucket_member(bucket)) end
return {'OK'}
