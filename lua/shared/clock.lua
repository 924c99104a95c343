-- clock: a time in ms that never goes back in a shard: the caller's, never earlier than what an owner has stored.
-- Owners give their own time (`daemon/clock.py`); for clients, which give none, it is the server's.
local function shard_clock(given, stored)
  local now = tonumber(given)
  if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return math.max(now, tonumber(stored or 0) or 0)
end
