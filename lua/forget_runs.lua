#!lua flags=allow-oom
-- forget_runs: delete ended runs with what they published and emitted, and remove them from the listings.
--
-- A run is deleted only if its header is byte for byte the one that the caller decided on: an open run, or a newer run
-- of the same id, stays. Its attributes are in that header, so the caller knows those listings too.
-- The shard's clock is set behind creation and end of each deleted run. So a run that is started later under the same id
-- was created later by that clock, which tells the two apart, also while the server's clock stands still or goes back.
-- (Its end may be before its creation: the one is by its owner's clock, the other by the server's.)
-- The log is trimmed up to a minute behind the end of the last of them, so that nothing of them is left there: at once as
-- far as the stored views count it, else by the next checkpoint. Of a run that ended long ago nothing is in the log. What
-- a group of subscribers has not acknowledged waits for it.
-- Safe to run twice.
--
-- KEYS   owner, views, log, positions, then for each run: run, index, tenant_index, published, chunks;
--        for each attribute: attribute_index
-- ARGV   runs (how many), then for each run: id, header; for each attribute: id
-- RETURNS the number of deleted runs / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
-- @include shared/trim_log
local FIXED_KEYS, RUN_KEYS = 4, 5
local SLACK = 60000 -- ms between the owner's clock, which says when a run ended, and the server's, which numbers entries
local count = tonumber(ARGV[1])
local owner, views, log, positions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local TYPES = {'list', 'zset', 'zset', 'hash', 'hash'}
if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
for i = FIXED_KEYS + 1, #KEYS do
  local wanted = i > RUN_KEYS * count + FIXED_KEYS and 'zset' or TYPES[(i - FIXED_KEYS - 1) % RUN_KEYS + 1]
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local clock = stored_clock(redis.call('HGET', owner, 'clock'))
local is_forgotten, is_behind, latest = {}, false, nil
for i = 1, count do
  local header = redis.call('LINDEX', KEYS[FIXED_KEYS + RUN_KEYS * (i - 1) + 1], 0)
  local status = header and string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  is_forgotten[i] = ended and header == ARGV[2 * i + 1]
  if is_forgotten[i] then
    local created, end_ms = string.match(header, '^%a+ %d+ %S+ (%d+) (%d+)')
    local last = math.max(tonumber(created or 0), tonumber(end_ms or 0))
    if last >= clock then clock, is_behind = last + 1, true end
    latest = math.max(latest or 0, last)
  end
end

if is_behind then redis.call('HSET', owner, 'clock', string.format('%.0f', clock)) end

local deleted, deleted_ids = 0, {}
for i = 1, count do
  if is_forgotten[i] then
    local at = FIXED_KEYS + RUN_KEYS * (i - 1)
    deleted_ids[ARGV[2 * i]] = true
    deleted = deleted + redis.call('UNLINK', KEYS[at + 1]) -- the server frees a long one beside its work
    redis.call('ZREM', KEYS[at + 2], ARGV[2 * i])
    redis.call('ZREM', KEYS[at + 3], ARGV[2 * i])
    redis.call('UNLINK', KEYS[at + 4], KEYS[at + 5])
  end
end
for i = RUN_KEYS * count + FIXED_KEYS + 1, #KEYS do
  local id = ARGV[2 * count + 1 + i - RUN_KEYS * count - FIXED_KEYS]
  if deleted_ids[id] then redis.call('ZREM', KEYS[i], id) end
end

local upto = latest and string.format('%.0f-0', latest + SLACK)
local stored = redis.call('HMGET', views, 'trim', 'forget', 'offset', 'partial')
if upto and not (stored[1] and before(upto, stored[1])) then
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if last then
    if before(last[1], upto) then upto = last[1] end
    if stored[3] and stored[4] and not before(stored[3], upto) then move_base(views, stored[4], stored[3], upto, stored[1])
    elseif not (stored[2] and before(upto, stored[2])) then redis.call('HSET', views, 'forget', upto) end
  end
end
trim_log(log, views, positions)
return deleted
