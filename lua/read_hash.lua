#!lua flags=no-writes
-- read_hash: read fields of a hash from a position on, as much of them as fits into one reply.
--
-- For what running steps of a shard have reported, at a takeover: a value may have ten bytes or megabytes, so a number
-- of fields limits nothing. Several fields that the server scans together and that don't fit are divided: the position
-- names those that are left. At least one field is returned, if there is one. As with HSCAN, a field may come twice,
-- and one that is there all the time isn't missed. What is read counts, also if only the first bytes of each value are
-- wanted: that takes the server as long. Reads only.
--
-- KEYS   steps (or details)
-- ARGV   limit (bytes), length (bytes of each value, its first ones; 0: all of it), cursor ('0' at first, '' behind the last field), then for each left field: field
-- RETURNS position (a list of the next cursor and fields that are left, empty if these are all), then for each field:
--         field, value / WRONGTYPE key
-- @include shared/holds
local key, limit, length, cursor = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local MOST = 64 -- fields that are scanned at once, about: more than one, if they are small
local OVERHEAD = 100 -- bytes that a field costs besides its own and its value's

if not holds(key, 'hash') then return redis.error_reply('WRONGTYPE ' .. key) end
local position, reply, count, bytes = {''}, {}, 0, 0

local function add(field, value)
  local size = #field + #value + OVERHEAD
  if #position > 1 or (count > 0 and bytes + size > limit) then
    position[#position + 1] = field
    return
  end
  reply[2 * count + 2], reply[2 * count + 3] = field, length > 0 and string.sub(value, 1, length) or value
  count = count + 1
  bytes = bytes + size
end

for n = 4, #ARGV do
  local value = #position > 1 and '' or redis.call('HGET', key, ARGV[n])
  if value then add(ARGV[n], value) end
end
local few = 1
while cursor ~= '' and #position == 1 and bytes < limit do
  if count > 0 then few = math.max(1, math.min(MOST, 2 * few, math.floor((limit - bytes) * count / bytes))) end
  local page = redis.call('HSCAN', key, cursor, 'COUNT', few)
  cursor = tostring(page[1])
  if cursor == '0' then cursor = '' end
  for n = 1, #page[2], 2 do add(page[2][n], page[2][n + 1]) end
end
position[1] = cursor
reply[1] = (cursor == '' and #position == 1) and {} or position
return reply
