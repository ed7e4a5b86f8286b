package devmail

// Limit lowers how much s keeps.
func (s *Server) Limit(mails int, bytes int64) {
	s.box.maxMails, s.box.maxBytes = mails, bytes
}
