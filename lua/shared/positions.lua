-- positions: from where groups go on in a shard's log: fields of one hash.
--
-- `<group>`: `<identity> <offset> <read> <token> <holder>`: the identity of the group, the entry up to which all is
-- acknowledged, how many entries of the log were before and with it, whose consumer may acknowledge, and its id; a token
-- without a nonce and the holder `-` are nobody's. `<group>/lost`: `<entries> <first> <last> <ms>`: how many entries were
-- removed that the group had not acknowledged, between which two offsets, and when last. `/view/<view>`: the entry up to
-- which the view of an app counts; it is gone when entries behind that were removed.

local NO_HOLDER = '-'
local LAST_NUMBER = '9007199254740991' -- 2^53 - 1: the number behind an entry's ms, where it means all of that ms

-- An id that somebody has damaged is before all others.
local function before(a, b)
  local a_ms, a_n = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_n = string.match(b, '^(%d+)-(%d+)$')
  a_ms, a_n, b_ms, b_n = tonumber(a_ms or 0), tonumber(a_n or 0), tonumber(b_ms or 0), tonumber(b_n or 0)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end

local function id_behind(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return ms .. '-' .. string.format('%.0f', tonumber(n) + 1)
end

local function id_before(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  if tonumber(n) > 0 then return ms .. '-' .. string.format('%.0f', tonumber(n) - 1) end
  if tonumber(ms) == 0 then return '0-0' end
  return string.format('%.0f', tonumber(ms) - 1) .. '-' .. LAST_NUMBER
end

-- Identity, offset, read, token and holder; nil if there is none, or somebody has damaged it: that holds nothing up.
local function position_of(value)
  local identity, offset, read, token, holder = string.match(value or '', '^(%S+) (%d+%-%d+) (%d+) (%S+) (%S+)$')
  return identity, offset, tonumber(read), token, holder
end

local VIEW = '/view/'

local function is_group(field) return not string.find(field, '/', 1, true) end -- no name has a slash

-- What the view of an app counts up to; nil if the field is not a view's, or somebody has damaged it.
local function counted_upto(field, value)
  if string.sub(field, 1, #VIEW) == VIEW then return string.match(value, '^%d+%-%d+$') end
end

-- The offset of the group or view that is furthest behind; nil if there is none.
local function least_position(positions)
  local least
  local stored = redis.call('HGETALL', positions)
  for i = 1, #stored, 2 do
    local _, offset = position_of(is_group(stored[i]) and stored[i + 1])
    offset = offset or counted_upto(stored[i], stored[i + 1])
    if offset and (not least or before(offset, least)) then least = offset end
  end
  return least
end
