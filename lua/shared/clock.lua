-- clock: a time in ms that never goes back in a shard: the caller's, never earlier than what an owner has stored.
-- Owners give their own time (`daemon/clock.py`); for clients, which give none, it is the server's.
-- What somebody else has stored there is no time: infinity, say, would get into the header of every new run.
local function stored_clock(stored)
  if string.match(stored or '', '^%d+$') and #stored < 16 then return tonumber(stored) end
  return 0
end
local function shard_clock(given, stored)
  local now = tonumber(given)
  if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return math.max(now, stored_clock(stored))
end
