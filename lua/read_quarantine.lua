#!lua flags=no-writes
-- read_quarantine: read what a shard has quarantined, the newest first, without the bodies of the messages.
--
-- Reads only. A body may have megabytes, so only its size is returned, and few entries are looked at at once.
--
-- KEYS   poison
-- ARGV   before (the entry before which to begin, '' for the newest), count
-- RETURNS for each message: entry, size (bytes of its body), then a list of its other fields and values / WRONGTYPE key
-- @include shared/holds
local poison, before, count = KEYS[1], ARGV[1], tonumber(ARGV[2])
local AT_ONCE = 8

if not holds(poison, 'stream') then return redis.error_reply('WRONGTYPE ' .. poison) end
local reply, read = {}, 0
local from = before == '' and '+' or '(' .. before
while read < count do
  local page = redis.call('XREVRANGE', poison, from, '-', 'COUNT', math.min(AT_ONCE, count - read))
  for n = 1, #page do
    local fields, others, size = page[n][2], {}, 0
    for i = 1, #fields, 2 do
      if fields[i] == 'body' then size = #fields[i + 1]
      else others[#others + 1], others[#others + 2] = fields[i], fields[i + 1] end
    end
    local at = #reply
    reply[at + 1], reply[at + 2], reply[at + 3] = page[n][1], string.format('%.0f', size), others
    from = '(' .. page[n][1]
  end
  read = read + #page
  if #page < AT_ONCE then break end
end
return reply
