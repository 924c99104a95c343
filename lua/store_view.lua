#!lua flags=allow-oom
-- store_view: store what a view of an app has counted of a shard, with the log entry up to which it counts.
--
-- Position and cells are stored together, so each event counts once whatever crashes: who stores what follows from a
-- position that isn't the stored one any more is refused. `before` and `after` are what the field has, as a whole: the
-- position and all that belongs to it. Only the owner may store: a zombie never writes.
-- The log keeps what the view has not counted (`positions`), within the limits of groups. What only waited for it may be
-- trimmed. Where the view's position isn't the one that the caller knows, entries were trimmed that it has not counted.
-- Safe to run twice: `after` that is stored already changes nothing.
--
-- KEYS   owner, app_view, positions, log, views
-- ARGV   token,
--        view, (its name)
--        field,
--        before, ('' if there is none yet)
--        after, ('' stores only the position)
--        held, (the position that is noted; '' for none)
--        offset, (the one that belongs to `after`)
--        removed, (number of fields)
--        then: old for each removed; field, cells for each window
-- RETURNS OK / FENCED token / STALE before held
-- @include shared/holds
-- @include shared/positions
-- @include shared/put_position
-- @include shared/trim_log
local owner, counted, positions, log, views = unpack(KEYS)
local token, view, field, before_it, after, held, offset, removed = unpack(ARGV, 1, 8)
local FIXED_ARGS = 8

local stored_token = redis.call('HGET', owner, 'token') or ''
if stored_token ~= token then return {'FENCED', stored_token} end
if not holds(counted, 'hash') then return redis.error_reply('WRONGTYPE ' .. counted) end
if not holds(positions, 'hash') then return redis.error_reply('WRONGTYPE ' .. positions) end
if not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if not holds(views, 'hash') then return redis.error_reply('WRONGTYPE ' .. views) end
local stored = redis.call('HGET', counted, field) or ''
local position = redis.call('HGET', positions, VIEW .. view) or ''
if stored == after and position == offset then return {'OK'} end
if stored ~= before_it or position ~= held then return {'STALE', stored, position} end

removed = tonumber(removed)
for n = FIXED_ARGS + 1, FIXED_ARGS + removed do redis.call('HDEL', counted, ARGV[n]) end
for n = FIXED_ARGS + removed + 1, #ARGV, 2 do redis.call('HSET', counted, ARGV[n], ARGV[n + 1]) end
if after ~= '' then redis.call('HSET', counted, field, after) end
redis.call('HSET', positions, VIEW .. view, offset)
trim_log(log, views, positions)
return {'OK'}
