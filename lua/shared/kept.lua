-- kept: how many of the messages in an inbox its owner has read, and the last one that it has read, as `<number> <id>`.

-- Messages that were read are deleted from the inbox: `noted` is what `kept` has, '' if nothing was read since the shard
-- was acquired.
local function count_down(kept, noted, removed)
  if removed == 0 or noted == '' then return end
  local in_hand, last = string.match(noted, '^(%d+) (.*)$')
  redis.call('SET', kept, string.format('%.0f %s', math.max(0, (tonumber(in_hand) or 0) - removed), last or '0-0'))
end
