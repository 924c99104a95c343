#!lua
-- restore_run: put an ended run back from the archive, with its history, what it published, and its entries in listings.
--
-- Refused when the id is in use: the answer is the header of the run that has it. A run that has not ended is no
-- run of an archive, and is refused, too. In the listings by status it stands as of now, by the later of the shard's and
-- the server's clock, so its retention begins again; in those by tenant and attribute as of its creation. The shard's
-- clock is set behind creation and end of the run, as `forget_runs` does: a run that gets its id later was created later.
-- Safe to run twice: the second time the run itself has the id. Refused when memory is short.
--
-- KEYS   owner, run, index, tenant_index, published, asleep, then for each attribute: attribute_index
-- ARGV   now (ms), header, state, transitions (how many), values (how many), then for each transition: transition;
--        for each value: key, value
-- RETURNS header (of the run that has the id now) / BADHEADER header / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/run_id
local owner, run, index, tenant_index, published, bucket = unpack(KEYS, 1, 6)
local FIXED_KEYS, FIXED_ARGS = 6, 5
local CHUNK = 1000 -- arguments of one command, an even number: `unpack` fails past some thousands
local header, state, transitions, values = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(published, 'hash') then return redis.error_reply('WRONGTYPE ' .. published) end
if not holds(bucket, 'hash') then return redis.error_reply('WRONGTYPE ' .. bucket) end
if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
for i = FIXED_KEYS + 1, #KEYS do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local present = redis.call('LINDEX', run, 0)
if present then return present end
local id = string.sub(run, run_id_begins(owner))
local sleeper = header_of_sleeper(bucket, id)
if sleeper ~= '' then return sleeper end
local status, created, ended, tenant = string.match(header, '^(%a+) %d+ %S+ (%d+) (%d+) %S+ (%S+)')
if status ~= 'completed' and status ~= 'failed' and status ~= 'cancelled' then
  return redis.error_reply('BADHEADER ' .. header)
end

local stored = stored_clock(redis.call('HGET', owner, 'clock'))
local now = shard_clock(ARGV[1], redis.call('HGET', owner, 'clock'))
local last = math.max(tonumber(created), tonumber(ended))
if last >= stored then redis.call('HSET', owner, 'clock', string.format('%.0f', last + 1)) end

redis.call('RPUSH', run, header, state)
local behind = FIXED_ARGS + transitions -- the last transition
for from = FIXED_ARGS + 1, behind, CHUNK do
  redis.call('RPUSH', run, unpack(ARGV, from, math.min(from + CHUNK - 1, behind)))
end
redis.call('UNLINK', published)
for from = behind + 1, behind + 2 * values, CHUNK do
  redis.call('HSET', published, unpack(ARGV, from, math.min(from + CHUNK - 1, behind + 2 * values)))
end
redis.call('ZADD', index, math.max(now, last), id)
if tenant ~= '-' then redis.call('ZADD', tenant_index, created, id) end
for i = FIXED_KEYS + 1, #KEYS do redis.call('ZADD', KEYS[i], created, id) end
return header
