-- clock: the shard's time in ms, from an override (tests) or the server, never earlier than what the shard has stored.
local function shard_clock(override, stored)
  local now = tonumber(override)
  if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return math.max(now, tonumber(stored or 0) or 0)
end
