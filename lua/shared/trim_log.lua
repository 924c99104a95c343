-- trim_log: remove the beginning of a log, of which views count everything in `base`.
-- The field `trim` is the last entry to remove, never behind `base_offset`; `trimming` is there while some are left.
-- Whole nodes go first, and then what is left of one node. The server frees 10,000 small entries in a millisecond, and
-- some 10 MB of large ones: one call removes as many as that, judged by the first nodes.
local MOST_TRIMMED, FEWEST_TRIMMED = 5000, 256 -- entries; a node has up to 100
local MOST_FREED = 64 * 1024 * 1024 -- bytes

-- An id that somebody has damaged is before all others.
local function before(a, b)
  local a_ms, a_n = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_n = string.match(b, '^(%d+)-(%d+)$')
  a_ms, a_n, b_ms, b_n = tonumber(a_ms or 0), tonumber(a_n or 0), tonumber(b_ms or 0), tonumber(b_n or 0)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end

-- What is stored with `offset` becomes the base, and the log is to be trimmed up to an entry that it counts.
local function move_base(views, partial, offset, upto, trimmed)
  if trimmed and before(upto, trimmed) then upto = trimmed end
  redis.call('HSET', views, 'base', partial, 'base_offset', offset, 'since', 0, 'trim', upto, 'trimming', 1)
end

-- Returns whether entries are left that are to be removed.
local function trim_log(log, views)
  local stored = redis.call('HMGET', views, 'trim', 'trimming')
  if not stored[2] then return false end
  local ms, n = string.match(stored[1] or '', '^(%d+)-(%d+)$')
  if not ms then
    redis.call('HDEL', views, 'trim', 'trimming')
    return false
  end
  local first = ms .. '-' .. string.format('%.0f', tonumber(n) + 1) -- that stays
  local limit, bytes = MOST_TRIMMED, redis.pcall('MEMORY', 'USAGE', log)
  if type(bytes) == 'number' then
    local fitting = math.floor(MOST_FREED * redis.call('XLEN', log) / math.max(bytes, 1))
    limit = math.max(FEWEST_TRIMMED, math.min(MOST_TRIMMED, fitting))
  end
  local removed = redis.call('XTRIM', log, 'MINID', '~', first, 'LIMIT', limit)
  if removed >= limit / 2 then return true end
  redis.call('XTRIM', log, 'MINID', first)
  redis.call('HDEL', views, 'trimming')
  return false
end
