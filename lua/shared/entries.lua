-- entries: append entries of a stream to a reply, each as its id and its fields, as many as fit.
--
-- At least one, if there is one. They may have a hundred bytes or megabytes, so few are read at once at first, and never
-- so many that large ones behind small ones would fill the memory.

-- Those behind `after`: about `limit` bytes, `most` in all, `first` at once at first. Returns whether there may be more,
-- and the last one's id.
local function append_entries(reply, stream, after, limit, first, most)
  local MOST_AT_ONCE = 256
  local OVERHEAD = 100 -- bytes that an entry costs besides its own
  local read, bytes, few = 0, 0, math.min(first, most)
  while true do
    local page = redis.call('XRANGE', stream, '(' .. after, '+', 'COUNT', few)
    for n = 1, #page do
      after = page[n][1]
      reply[#reply + 1], reply[#reply + 2] = after, page[n][2]
      read, bytes = read + 1, bytes + OVERHEAD
      for _, word in ipairs(page[n][2]) do bytes = bytes + #word end
      if bytes >= limit then return true, after end
    end
    if #page < few then return false, after end
    if read >= most then return true, after end
    few = math.max(1, math.min(MOST_AT_ONCE, most - read, 2 * few, math.floor((limit - bytes) * read / bytes)))
  end
end
