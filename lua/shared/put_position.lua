-- put_position: what is written of positions (shared/positions, which it needs).

local function put_position(positions, group, identity, offset, read, token, holder)
  local words = {identity, offset, string.format('%.0f', read), token, holder}
  redis.call('HSET', positions, group, table.concat(words, ' '))
end

-- `lost` entries behind `held` were removed, `removed` in all: those groups that hadn't acknowledged them go on behind, and
-- those views that hadn't counted them have no position any more: their owner finds that out.
local function note_lost(positions, log, lost, removed, held, trim, now)
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local upto = first and id_before(first[1]) or trim
  local stored = redis.call('HGETALL', positions)
  for i = 1, #stored, 2 do
    local group = stored[i]
    local identity, offset, read, token, holder = position_of(is_group(group) and stored[i + 1])
    local counted = counted_upto(group, stored[i + 1])
    if counted and before(counted, upto) then
      redis.call('HDEL', positions, group)
    elseif identity and before(offset, upto) then
      local missed = offset == held and lost or math.min(lost, math.max(0, removed - read))
      put_position(positions, group, identity, upto, removed, token, holder)
      if missed > 0 then
        local known = redis.call('HGET', positions, group .. '/lost') or ''
        local count, since = string.match(known, '^(%d+) (%S+) ')
        local words = {string.format('%.0f', (tonumber(count) or 0) + missed), since or offset, upto, string.format('%.0f', now)}
        redis.call('HSET', positions, group .. '/lost', table.concat(words, ' '))
      end
    end
  end
end
