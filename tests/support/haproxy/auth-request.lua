-- The action of haproxy-auth-request that haproxy.cfg uses, in small: for tests alone.
local function wanted(name, patterns)
  for _, pattern in ipairs(patterns) do
    if pattern == "*" or pattern == name then return true end
    if pattern:sub(-1) == "*" and name:sub(1, #pattern - 1) == pattern:sub(1, -2) then return true end
  end
  return false
end

local function split(text)
  local out = {}
  for word in text:gmatch("[^,]+") do out[#out + 1] = word:lower() end
  return out
end

core.register_action("auth-intercept", { "http-req" }, function(txn, be, path, method, hdr_req, hdr_ok, hdr_fail)
  txn:set_var("txn.auth_response_successful", false)
  local backend = core.backends[be]
  local address
  for _, server in pairs(backend.servers) do address = server:get_addr() end
  local lines = { method .. " " .. path .. " HTTP/1.1", "Host: " .. address, "Connection: close" }
  for name, values in pairs(txn.http:req_get_headers()) do
    if wanted(name, split(hdr_req)) then
      local all = {}
      for i = 0, #values do all[#all + 1] = values[i] end
      lines[#lines + 1] = name .. ": " .. table.concat(all, ", ")
    end
  end
  local socket = core.tcp()
  socket:settimeout(5)
  if not socket:connect(address) then return end
  socket:send(table.concat(lines, "\r\n") .. "\r\n\r\n")
  local start = socket:receive("*l")
  local status = start and tonumber(start:match("^HTTP/1.%d (%d%d%d)"))
  if not status then return end
  local headers = {}
  while true do
    local line = socket:receive("*l")
    if not line or line == "" or line == "\r" then break end
    local name, value = line:match("^([^:]+):%s*(.-)\r?$")
    headers[#headers + 1] = { name:lower(), value }
  end
  local length = 0
  for _, pair in ipairs(headers) do
    txn:set_var("req.auth_response_header." .. pair[1]:gsub("%W", "_"), pair[2])
    if pair[1] == "content-length" then length = tonumber(pair[2]) end
  end
  if status >= 200 and status < 300 then
    for _, pair in ipairs(headers) do
      if wanted(pair[1], split(hdr_ok)) then txn.http:req_set_header(pair[1], pair[2]) end
    end
    txn:set_var("txn.auth_response_successful", true)
    socket:close()
    return
  end
  local body = length > 0 and socket:receive(length) or ""
  socket:close()
  local reply = txn:reply()
  reply:set_status(status)
  for _, pair in ipairs(headers) do
    if pair[1] ~= "connection" and pair[1] ~= "content-length" and wanted(pair[1], split(hdr_fail)) then
      reply:add_header(pair[1], pair[2])
    end
  end
  reply:set_body(body)
  txn:done(reply)
end, 6)
