#!lua flags=allow-oom
-- place_position: set from where a group goes on in a shard's log, or remove it there.
--
-- From now on the log is not trimmed beyond it. The consumer that had the shard has it no more: what it acknowledges is
-- refused. A group that has a position here keeps it, unless `over`; a group of another identity has none. Of a
-- removed group nothing stays, and what only it waited for may be trimmed. Safe to run twice.
--
-- KEYS   positions, log, views
-- ARGV   group, identity, to (`now`, `oldest`, or ms: the entries since then; '' removes it), over ('' or 1)
-- RETURNS OK offset ('' if removed) / WRONGTYPE key
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
-- @include shared/trim_log
local positions, log, views = KEYS[1], KEYS[2], KEYS[3]
local group, identity, to, over = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local MOST_COUNTED = 1000 -- entries that are counted one by one

if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end

local found, present, _, token = position_of(redis.call('HGET', positions, group))
if to ~= '' and found == identity and over == '' then return {'OK', present} end
if to == '' then
  redis.call('HDEL', positions, group, group .. '/lost')
  trim_log(log, views, positions)
  return {'OK', ''}
end
local removed = tonumber(redis.call('HGET', views, 'removed') or 0)
local length = redis.call('XLEN', log)
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local offset, read
if to == 'oldest' or not last then
  offset, read = '0-0', removed
elseif to == 'now' then
  offset, read = last[1], removed + length
else
  offset = id_before(to .. '-0')
  local behind = #redis.call('XRANGE', log, id_behind(offset), '+', 'COUNT', MOST_COUNTED)
  if behind == MOST_COUNTED then -- about: it is known again when the group has read all
    local first = tonumber(string.match(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1][1], '^%d+'))
    local span = math.max(1, tonumber(string.match(last[1], '^%d+')) - first)
    local part = (first + span - tonumber(to)) / span
    behind = math.max(MOST_COUNTED, math.min(length, math.floor(length * part)))
  end
  read = removed + length - behind
end
local epoch = tonumber(string.match(token or '', '^%d+') or 0) + 1
put_position(positions, group, identity, offset, read, string.format('%.0f:', epoch), NO_HOLDER)
redis.call('HDEL', positions, group .. '/lost')
trim_log(log, views, positions)
return {'OK', offset}
