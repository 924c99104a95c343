-- commit_distance: by how much the number of a commit id is ahead of that of the shard's last one, or of 0 when there is
-- none; nil if they can't be compared. An id is `<session>.<number>`, or `<session>.<number>.<try>` if an earlier commit
-- of that number was refused. Less than 0: it arrives late, behind newer ones, from a connection that was given up. It
-- was applied at its time, or newer ones took its place.
local function commit_distance(one, last)
  local session, number = string.match(one, '^([^.]*)%.(%d+)')
  if session == nil or not last then return tonumber(number) end
  local last_session, last_number = string.match(last, '^([^.]*)%.(%d+)')
  return session == last_session and tonumber(number) - tonumber(last_number) or nil
end
