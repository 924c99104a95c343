-- is_before: whether a commit arrives late, behind newer ones, from a connection that was given up.
-- Its id, `<session>.<number>`, is of the same session as the other and has a lower number. It was applied at its time,
-- or newer ones took its place.
local function is_before(one, other)
  local session, number = string.match(one, '^(.*)%.(%d+)$')
  local other_session, other_number = string.match(other or '', '^(.*)%.(%d+)$')
  return session ~= nil and session == other_session and tonumber(number) < tonumber(other_number)
end
