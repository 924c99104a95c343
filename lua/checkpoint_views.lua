#!lua flags=allow-oom
-- checkpoint_views: store a shard's part of the views with the log entry up to which it counts, and trim the log.
--
-- What is trimmed is always counted in `base`: when as many bytes were logged since the base was made as half of `most`,
-- or half of `age` has passed, all up to the base's offset is removed, and the present partial becomes the next base. So
-- at any time base + the log behind its offset = partial, and views can be rebuilt exactly. The log has at most about
-- `most` bytes, none of its entries is older than `age`, and at least half of either stays. What `forget_runs` wants
-- removed goes as soon as it is counted. One call removes a bounded number of entries. What a group of subscribers has
-- not acknowledged stays, up to `held` bytes more and up to the age `held_age`.
-- Also stores the oldest open runs, from the listings of running runs.
-- Safe to run twice: an offset that is stored already changes nothing. A partial that counts an entry which the log never
-- had, because this server has lost it, is refused.
--
-- KEYS   owner, views, log, positions, then: running_index for each workflow
-- ARGV   token,
--        offset,
--        partial,
--        now, (the owner's time)
--        logged, (bytes of the entries behind the offset that is stored)
--        most, (bytes)
--        age, (ms)
--        held, (bytes)
--        held_age, (ms)
--        oldest,
--        then: workflow for each running_index
-- RETURNS OK entries (left in the log) again (ms by the owner's clock, when there is more to trim: 0 at once, '' never)
--         / FENCED token / STALE offset / BEHIND offset
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
-- @include shared/trim_log
local owner, views, log, positions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, offset, partial, now, logged = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local half, half_age = tonumber(ARGV[6]) / 2, tonumber(ARGV[7]) / 2
local most_held, held_age, oldest = tonumber(ARGV[6]) + tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local FIXED_KEYS, FIXED_ARGS = 4, 10

local stored_token = redis.call('HGET', owner, 'token') or ''
if stored_token ~= token then return {'FENCED', stored_token} end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
for i = FIXED_KEYS + 1, #KEYS do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local stored = redis.call('HMGET', views, 'offset', 'base_offset', 'base_at', 'since', 'trim', 'forget')
local base_offset, base_at, since = stored[2], tonumber(stored[3] or 0), tonumber(stored[4] or 0)
if stored[1] and before(offset, stored[1]) then return {'STALE', stored[1]} end
if offset ~= stored[1] and #redis.call('XRANGE', log, offset, offset) == 0 then return {'BEHIND', stored[1] or ''} end

local open = {}
for i = FIXED_KEYS + 1, #KEYS do
  local first = redis.call('ZRANGE', KEYS[i], 0, oldest - 1, 'WITHSCORES')
  local workflow = ARGV[i - FIXED_KEYS + FIXED_ARGS]
  for n = 1, #first, 2 do open[#open + 1] = first[n] .. ' ' .. first[n + 1] .. ' ' .. workflow end
end
if stored[1] ~= offset then since = since + logged end -- else this call is sent again, or only trims
redis.call('HSET', views, 'offset', offset, 'partial', partial, 'oldest', table.concat(open, '\n'), 'since', since)

local entries = redis.call('XLEN', log)
if not base_offset then
  redis.call('HSET', views, 'base', partial, 'base_offset', offset, 'base_at', ARGV[4], 'since', 0)
  base_at = now
elseif entries > 0 and (since >= half or math.abs(now - base_at) >= half_age) then -- or the clock was set back
  move_base(views, partial, offset, base_offset, stored[5])
  redis.call('HSET', views, 'base_at', ARGV[4])
  base_at = now
end
if stored[6] and not before(offset, stored[6]) then
  move_base(views, partial, offset, stored[6], redis.call('HGET', views, 'trim'))
  redis.call('HDEL', views, 'forget')
end
local unfinished, held_until = trim_log(log, views, positions, now, most_held, held_age)
entries = redis.call('XLEN', log)
local next_look = math.min(base_at + half_age, held_until or math.huge)
local again = unfinished and '0' or entries == 0 and '' or string.format('%.0f', next_look)
return {'OK', entries, again}
