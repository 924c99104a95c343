#!lua flags=allow-oom
-- forget_runs: delete ended runs with what they published, and remove them from the listings.
--
-- A run is deleted only if its header is byte for byte the one that the caller decided on: an open run, or a newer run
-- of the same id, stays. Its attributes are in that header, so the caller knows those listings too.
-- The shard's clock is set behind creation and end of each deleted run. So a run that is started later under the same id
-- was created later by that clock, which tells the two apart, also while the server's clock stands still or goes back.
-- (Its end may be before its creation: the one is by its owner's clock, the other by the server's.)
-- Safe to run twice.
--
-- KEYS   owner, then for each run: run, index, tenant_index, published; for each attribute: attribute_index
-- ARGV   runs (how many), then for each run: id, header; for each attribute: id
-- RETURNS the number of deleted runs / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
local count = tonumber(ARGV[1])
local owner = KEYS[1]
local TYPES = {'list', 'zset', 'zset', 'hash'}
if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
for i = 2, #KEYS do
  local wanted = i > 4 * count + 1 and 'zset' or TYPES[(i - 2) % 4 + 1]
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local clock = stored_clock(redis.call('HGET', owner, 'clock'))
local is_forgotten, is_behind = {}, false
for i = 1, count do
  local header = redis.call('LINDEX', KEYS[4 * i - 2], 0)
  local status = header and string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  is_forgotten[i] = ended and header == ARGV[2 * i + 1]
  if is_forgotten[i] then
    local created, end_ms = string.match(header, '^%a+ %d+ %S+ (%d+) (%d+)')
    local last = math.max(tonumber(created or 0), tonumber(end_ms or 0))
    if last >= clock then clock, is_behind = last + 1, true end
  end
end

if is_behind then redis.call('HSET', owner, 'clock', string.format('%.0f', clock)) end

local deleted, deleted_ids = 0, {}
for i = 1, count do
  if is_forgotten[i] then
    deleted_ids[ARGV[2 * i]] = true
    deleted = deleted + redis.call('UNLINK', KEYS[4 * i - 2]) -- the server frees a long one beside its work
    redis.call('ZREM', KEYS[4 * i - 1], ARGV[2 * i])
    redis.call('ZREM', KEYS[4 * i], ARGV[2 * i])
    redis.call('UNLINK', KEYS[4 * i + 1])
  end
end
for i = 4 * count + 2, #KEYS do
  local id = ARGV[2 * count + i - 4 * count]
  if deleted_ids[id] then redis.call('ZREM', KEYS[i], id) end
end
return deleted
