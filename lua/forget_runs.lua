#!lua flags=allow-oom
-- forget_runs: delete ended runs with what they published, and remove them from the listings.
--
-- A run is deleted only if its header is byte for byte the one that the caller decided on: an open run, or a newer run
-- of the same id, stays. Its attributes are in that header, so the caller knows those listings too.
-- Safe to run twice.
--
-- KEYS   for each run: run, index, tenant_index, published; for each attribute: attribute_index
-- ARGV   runs (how many), then for each run: id, header; for each attribute: id
-- RETURNS the number of deleted runs / WRONGTYPE key
-- @include shared/holds
local count = tonumber(ARGV[1])
local TYPES = {'list', 'zset', 'zset', 'hash'}
for i, key in ipairs(KEYS) do
  local wanted = i > 4 * count and 'zset' or TYPES[(i - 1) % 4 + 1]
  if not holds(key, wanted) then return redis.error_reply('WRONGTYPE ' .. key) end
end
local is_forgotten = {}
for i = 1, count do
  local header = redis.call('LINDEX', KEYS[4 * i - 3], 0)
  local status = header and string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  is_forgotten[i] = ended and header == ARGV[2 * i + 1]
end

local deleted, deleted_ids = 0, {}
for i = 1, count do
  if is_forgotten[i] then
    deleted_ids[ARGV[2 * i]] = true
    deleted = deleted + redis.call('UNLINK', KEYS[4 * i - 3]) -- the server frees a long one beside its work
    redis.call('ZREM', KEYS[4 * i - 2], ARGV[2 * i])
    redis.call('ZREM', KEYS[4 * i - 1], ARGV[2 * i])
    redis.call('UNLINK', KEYS[4 * i])
  end
end
for i = 4 * count + 1, #KEYS do
  local id = ARGV[1 + 2 * count + i - 4 * count]
  if deleted_ids[id] then redis.call('ZREM', KEYS[i], id) end
end
return deleted
