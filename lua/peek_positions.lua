#!lua flags=no-writes
-- peek_positions: return how far groups are in a shard's log, and how old the first entry is that waits for each.
--
-- Reads only.
--
-- KEYS   positions, log, views
-- ARGV   group ('' for all)
-- RETURNS for each group: group, position, lost ('' for nothing), waiting (entries), oldest (entry, '' if none waits)
--         / WRONGTYPE key
-- @include shared/holds
-- @include shared/positions
local positions, log, views = KEYS[1], KEYS[2], KEYS[3]
local wanted = ARGV[1]
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
local total = tonumber(redis.call('HGET', views, 'removed') or 0) + redis.call('XLEN', log)
local stored = wanted == '' and redis.call('HGETALL', positions) or {wanted, redis.call('HGET', positions, wanted)}
local reply = {}
for i = 1, #stored, 2 do
  local group = stored[i]
  local identity, offset, read = position_of(is_group(group) and stored[i + 1])
  if identity then
    local next = redis.call('XRANGE', log, id_behind(offset), '+', 'COUNT', 1)[1]
    local waiting = next and math.max(1, total - read) or 0
    reply[#reply + 1], reply[#reply + 2] = group, stored[i + 1]
    reply[#reply + 1] = redis.call('HGET', positions, group .. '/lost') or ''
    reply[#reply + 1], reply[#reply + 2] = string.format('%.0f', waiting), next and next[1] or ''
  end
end
return reply
