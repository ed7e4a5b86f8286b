package producer

// A problemCode says what a [Problem]'s or a [FieldError]'s code means.
type problemCode struct {
	Code    string
	Status  int
	Meaning string
}

// problemCodes are all there are, in the order in which a request meets them. The page
// /docs shows them.
var problemCodes = []problemCode{
	{"not_found", 404, "There is nothing at this path."},
	{"method_not_allowed", 405, "The path does not know the method; Allow lists those that it knows."},
	{"content_type", 415, "The body is not announced as JSON in UTF-8."},
	{"content_encoding", 415, "The body is compressed."},
	{"token_invalid", 401, "The operation needs an access token, and there is none that is valid."},
	{"forbidden", 403, "The access token does not allow this."},
	{"query_invalid", 400, "The part of the address after the ? cannot be read."},
	{"limit_invalid", 400, "The limit of a page is not one number from 1 to 200."},
	{"cursor_invalid", 400, "The after of a page is no next of a page before."},
	{"idempotency_key_invalid", 400, "The Idempotency-Key is not of the form that the operation describes."},
	{"body_required", 400, "The request has no body."},
	{"body_too_large", 413, "The body is larger than 64 KiB."},
	{"body_timeout", 408, "The body took too long to arrive."},
	{"body_incomplete", 400, "The body ended before its end."},
	{"invalid_utf8", 400, "The body is not valid UTF-8."},
	{"json_invalid", 400, "The body is not valid JSON."},
	{"json_object_required", 400, "The body is JSON, but no object."},
	{"json_too_deep", 400, "The body is nested too deeply."},
	{"json_trailing_data", 400, "Something follows the object in the body."},
	{"duplicate_field", 400, "A field stands in the body twice."},
	{"unknown_field", 400, "The body has a field that the operation does not know. Names are case-sensitive."},
	{"wrong_type", 400, "A field has another JSON type than it should."},
	{"invalid_parameter", 422, "A parameter in path, query or header is not valid."},
	{"invalid_request", 400, "The request is not valid in some other way."},
	{"invalid_fields", 422, "Several fields are not valid; errors names each, with its code."},
	{"email_required", 422, "There is no email address."},
	{"email_too_long", 422, "The address has more than 254 bytes, or 64 before the @."},
	{"email_not_ascii", 422, "The address has characters that are not ASCII."},
	{"email_invalid", 422, "This is not a plain email address."},
	{"email_domain", 422, "The address has no domain with a dot."},
	{"email_taken", 409, "Somebody signed up with this address already."},
	{"name_required", 422, "There is no name."},
	{"name_too_long", 422, "The name has more than 200 characters."},
	{"control_character", 422, "The name has control or invisible characters."},
	{"password_required", 422, "There is no password."},
	{"password_too_short", 422, "The password has fewer than 12 characters."},
	{"password_too_long", 422, "The password has more than 256 characters, or 1024 bytes."},
	{"password_control_character", 422, "The password has control characters."},
	{"password_is_email", 422, "The password is the email address."},
	{"user_not_found", 404, "There is no user with this id."},
	{"feature_off", 404, "The operation is switched off."},
	{"profile_not_found", 404, "The user has no profile yet."},
	{"profiles_unavailable", 503, "The profiles service gives no answer that can be used. Try again after Retry-After."},
	{"changed_meanwhile", 412, "The user has none of the ETags in If-Match any more."},
	{"request_in_flight", 409, "Another request with the same Idempotency-Key is being carried out."},
	{"idempotency_mismatch", 422, "The Idempotency-Key was used with another request before."},
	{"client_closed_request", 499, "The client went away; nobody gets to see this."},
	{"busy", 503, "The service has too much to do. Nothing was stored. Try again after Retry-After."},
	{"database_unavailable", 503, "The database is not available. Nothing was stored. Try again after Retry-After."},
	{"outcome_unknown", 503, "The connection to the database broke: the request may have been carried out, or not."},
	{"internal", 500, "Something went wrong in the service, and was logged there."},
}
