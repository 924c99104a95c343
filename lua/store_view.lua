#!lua flags=allow-oom
-- store_view: store what a view of an app has counted of a shard, with the log entry up to which it counts.
--
-- Position and cells are stored together, so each event counts once whatever crashes: who stores what follows from a
-- position that isn't the stored one any more is refused. `before` and `after` are what the field has, as a whole: the
-- position and all that belongs to it. Only the owner may store: a zombie never writes.
-- Safe to run twice: `after` that is stored already changes nothing.
--
-- KEYS   owner, app_view
-- ARGV   token,
--        field,
--        before, ('' if there is none yet)
--        after,
--        removed, (number of fields)
--        then: old for each removed; field, cells for each window
-- RETURNS OK / FENCED token / STALE before
-- @include shared/holds
local owner, view = KEYS[1], KEYS[2]
local token, field, before, after, removed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local FIXED_ARGS = 5

local stored_token = redis.call('HGET', owner, 'token') or ''
if stored_token ~= token then return {'FENCED', stored_token} end
if not holds(view, 'hash') then return redis.error_reply('WRONGTYPE ' .. view) end
local stored = redis.call('HGET', view, field) or ''
if stored == after then return {'OK'} end
if stored ~= before then return {'STALE', stored} end

for n = FIXED_ARGS + 1, FIXED_ARGS + removed do redis.call('HDEL', view, ARGV[n]) end
for n = FIXED_ARGS + removed + 1, #ARGV, 2 do redis.call('HSET', view, ARGV[n], ARGV[n + 1]) end
redis.call('HSET', view, field, after)
return {'OK'}
