#!lua flags=allow-oom
-- forget: delete ended runs and take them off the listings.
--
-- A run is deleted only if its header is byte for byte the one that the caller decided on: an open run, or a run that
-- was started anew under the same id, stays. Safe to run twice.
--
-- KEYS   for each run: run, index, tenant_index
-- ARGV   for each run: id, header
-- RETURNS the number of deleted runs / WRONGTYPE key
-- @include shared/holds
local count = #KEYS / 3
local going = {}
for i = 1, count do
  local run, index, tenant_index = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
  if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
  if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
  local header = redis.call('LINDEX', run, 0)
  local status = header and string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  going[i] = ended and header == ARGV[2 * i]
end

local deleted = 0
for i = 1, count do
  if going[i] then
    deleted = deleted + redis.call('DEL', KEYS[3 * i - 2])
    redis.call('ZREM', KEYS[3 * i - 1], ARGV[2 * i - 1])
    redis.call('ZREM', KEYS[3 * i], ARGV[2 * i - 1])
  end
end
return deleted
