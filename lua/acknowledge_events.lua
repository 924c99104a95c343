#!lua flags=allow-oom
-- acknowledge_events: note up to which entry of a shard's log a group has had all, and give the shard up if it is wanted.
--
-- Only for the consumer that has the shard. What was waited for may be trimmed then. A position never goes back, so this
-- is safe to run twice. An entry that the log doesn't have was lost by this server: BEHIND, nothing changes.
--
-- KEYS   positions, log, views
-- ARGV   group, token, offset ('' for no new one), entries (of the log since the last call), release ('' or 1)
-- RETURNS OK offset lost ('' for nothing) / FENCED token ('' if the group is gone) / BEHIND offset / WRONGTYPE key
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
-- @include shared/trim_log
local positions, log, views = KEYS[1], KEYS[2], KEYS[3]
local group, token, offset, entries, release = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
local identity, present, read, stored, holder = position_of(redis.call('HGET', positions, group))
local epoch = string.match(token, '^%d+:')
if stored ~= token then
  if release ~= '' and stored == epoch then return {'OK', present, ''} end -- it was released by this call before
  return {'FENCED', stored or ''}
end
if offset ~= '' and before(present, offset) then
  local found = redis.call('XRANGE', log, offset, '+', 'COUNT', 2)
  local trimmed = redis.call('HGET', views, 'trim')
  local is_there = found[1] and found[1][1] == offset
  if not is_there and (not trimmed or before(trimmed, offset)) then return {'BEHIND', present} end
  present, read = offset, read + entries
  if is_there and #found == 1 then read = tonumber(redis.call('HGET', views, 'removed') or 0) + redis.call('XLEN', log) end
end
if release ~= '' then token, holder = epoch, NO_HOLDER end
put_position(positions, group, identity, present, read, token, holder)
trim_log(log, views, positions)
return {'OK', present, redis.call('HGET', positions, group .. '/lost') or ''}
