#!lua flags=allow-oom
-- checkpoint_views: store a shard's part of the views with the log entry up to which it counts, and trim the log.
--
-- What is trimmed is always counted in `base`: once the log has `keep` entries more than when the base was made, all up
-- to the base's offset are removed, and the present partial becomes the next base. So at any time base + the log behind
-- its offset = partial, views can be rebuilt exactly, and at least `keep` entries stay.
-- Also stores the oldest open runs, from the listings of running runs.
-- Safe to run twice: an offset that is stored already changes nothing.
--
-- KEYS   owner, views, log, then: running_index for each workflow
-- ARGV   token, offset, partial, keep, oldest, then: workflow for each running_index
-- RETURNS OK entries (left in the log) / FENCED token / STALE offset
-- @include shared/holds
local owner, views, log = KEYS[1], KEYS[2], KEYS[3]
local token, offset, partial, oldest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local keep = math.max(tonumber(ARGV[4]), 1)

local function before(a, b)
  local a_ms, a_n = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_n = string.match(b, '^(%d+)-(%d+)$')
  a_ms, a_n, b_ms, b_n = tonumber(a_ms), tonumber(a_n), tonumber(b_ms), tonumber(b_n)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end

local stored_token = redis.call('HGET', owner, 'token') or ''
if stored_token ~= token then return {'FENCED', stored_token} end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
for i = 4, #KEYS do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local stored = redis.call('HMGET', views, 'offset', 'base_offset', 'base_entries')
if stored[1] and before(offset, stored[1]) then return {'STALE', stored[1]} end

local open = {}
for i = 4, #KEYS do
  local first = redis.call('ZRANGE', KEYS[i], 0, oldest - 1, 'WITHSCORES')
  for n = 1, #first, 2 do open[#open + 1] = first[n] .. ' ' .. first[n + 1] .. ' ' .. ARGV[i + 2] end
end
redis.call('HSET', views, 'offset', offset, 'partial', partial, 'oldest', table.concat(open, '\n'))
local entries = redis.call('XLEN', log)
if not stored[2] or entries - tonumber(stored[3] or 0) >= keep then
  if stored[2] then
    local ms, n = string.match(stored[2], '^(%d+)-(%d+)$')
    redis.call('XTRIM', log, 'MINID', ms .. '-' .. string.format('%.0f', tonumber(n) + 1))
    entries = redis.call('XLEN', log)
  end
  redis.call('HSET', views, 'base', partial, 'base_offset', offset, 'base_entries', entries)
end
return {'OK', entries}
