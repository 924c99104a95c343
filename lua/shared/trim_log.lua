-- trim_log: remove the beginning of a log, of which views count everything in `base`.
-- The field `trim` is the last entry to remove, never behind `base_offset`; `trimming` is there while some are left.
-- Whole nodes go first, and then what is left of one node. The server frees 10,000 small entries in a millisecond, and
-- some 10 MB of large ones: one call removes as many as that, judged by the first nodes.
-- What a group has not acknowledged or a view of an app not counted stays (`positions`), but not beyond limits: bytes of
-- the whole log, and an age. What is removed all the same is noted for each group and view that misses it. `removed` of the views counts what ever was removed, so
-- that `removed` and the log's length are the number of entries that there ever were.
-- Needs shared/positions and shared/put_position.
local MOST_TRIMMED, FEWEST_TRIMMED = 5000, 256 -- entries; a node has up to 100
local MOST_FREED = 64 * 1024 * 1024 -- bytes

-- What is stored with `offset` becomes the base, and the log is to be trimmed up to an entry that it counts.
local function move_base(views, partial, offset, upto, trimmed)
  if trimmed and before(upto, trimmed) then upto = trimmed end
  redis.call('HSET', views, 'base', partial, 'base_offset', offset, 'since', 0, 'trim', upto, 'trimming', 1)
end

-- Returns whether entries are left that are to be removed at once, and if some are held, when to look again (ms).
-- `now` nil: only what no group and no view waits for. Else `most`: bytes that the log may have while groups wait; `age`: ms.
local function trim_log(log, views, positions, now, most, age)
  local LOOK_AGAIN = 10000 -- ms, at the earliest
  local stored = redis.call('HMGET', views, 'trim', 'trimming')
  local trim = stored[1]
  if not stored[2] then return false end
  if not string.match(trim or '', '^%d+-%d+$') then
    redis.call('HDEL', views, 'trim', 'trimming')
    return false
  end
  local limit, bytes = MOST_TRIMMED, redis.pcall('MEMORY', 'USAGE', log)
  local length = redis.call('XLEN', log)
  if type(bytes) == 'number' then
    local fitting = math.floor(MOST_FREED * length / math.max(bytes, 1))
    limit = math.max(FEWEST_TRIMMED, math.min(MOST_TRIMMED, fitting))
  end
  local held = least_position(positions)
  local waits = held and before(held, trim)
  local upto = waits and held or trim
  local removed = redis.call('XTRIM', log, 'MINID', '~', id_behind(upto), 'LIMIT', limit)
  local unfinished = removed >= limit / 2
  if not unfinished then removed = removed + redis.call('XTRIM', log, 'MINID', id_behind(upto)) end
  if removed > 0 then redis.call('HINCRBY', views, 'removed', removed) end
  if unfinished then return true end
  if not waits then
    redis.call('HDEL', views, 'trimming')
    return false
  end
  if not now then return false end

  -- Everything up to `held` is gone; what is behind it is lost for at least one group or view.
  local lost, is_full = 0, false
  local old = string.format('%.0f-0', now - age)
  local due = before(old, trim) and old or trim
  if before(held, due) then lost = redis.call('XTRIM', log, 'MINID', '~', id_behind(due), 'LIMIT', limit) end
  if lost < limit / 2 then
    if before(held, due) then lost = lost + redis.call('XTRIM', log, 'MINID', id_behind(due)) end
    bytes = redis.pcall('MEMORY', 'USAGE', log)
    if type(bytes) == 'number' and bytes > most then
      local left = redis.call('XLEN', log)
      local some = math.max(FEWEST_TRIMMED, math.min(limit, math.ceil(left * (bytes - most) / bytes)))
      local more = redis.call('XTRIM', log, 'MINID', '~', id_behind(trim), 'LIMIT', some)
      if more == 0 then more = redis.call('XTRIM', log, 'MINID', id_behind(trim)) end -- one node has them all
      lost, is_full = lost + more, more > 0
    end
  else
    is_full = true
  end
  if lost > 0 then note_lost(positions, log, lost, redis.call('HINCRBY', views, 'removed', lost), held, trim, now) end
  if is_full then return true end
  if not before(least_position(positions), trim) then
    redis.call('HDEL', views, 'trimming')
    return false
  end
  return false, math.max(now + LOOK_AGAIN, tonumber(string.match(held, '^%d+')) + age)
end
