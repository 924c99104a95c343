-- came_again: messages that have come again behind the last look at an inbox, found before a commit writes, then removed.
local again = {} -- their ids

-- ARGV has behind `at` the message that was looked at last, then identities, `count` in all. False if there are too many
-- messages behind it to look at.
local function find_again(inbox, at, count)
  local PAGE, MOST = 100, 5000
  local wanted, read, after = {}, 0, ARGV[at + 1]
  for i = 2, count do wanted[ARGV[at + i]] = true end
  while read < MOST do
    local page = redis.call('XRANGE', inbox, '(' .. after, '+', 'COUNT', PAGE)
    for n = 1, #page do
      after = page[n][1]
      local fields = page[n][2]
      for i = 1, #fields, 2 do
        if fields[i] == 'from' and wanted[fields[i + 1]] then again[#again + 1] = after end
      end
    end
    if #page < PAGE then return true end
    read = read + PAGE
  end
  return false
end

-- How many there were.
local function remove_again(inbox)
  local removed = 0
  for _, id in ipairs(again) do removed = removed + redis.call('XDEL', inbox, id) end
  return removed
end
