package console

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestAPIDocs: on the page of the API of the user service a request is tried out, and shown as a curl command.
func TestAPIDocs(t *testing.T) {
	b := open(t, env.Users)
	b.do(chromedp.Navigate(b.base + "/docs"))
	b.sees("Sign up", "/users", "Problem codes")
	b.do(chromedp.Click("#operations-users-create-user .opblock-summary-control"), chromedp.WaitReady("#operations-users-create-user textarea"))
	mail := somebody()
	eval[any](b, fmt.Sprintf(`(() => {
		const text = document.querySelector("#operations-users-create-user textarea")
		const set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set
		set.call(text, JSON.stringify({email: %q, name: "Ada", password: "correct horse battery staple"}))
		text.dispatchEvent(new Event("input", {bubbles: true}))
	})()`, mail))
	b.do(chromedp.Click("#operations-users-create-user .execute"))
	b.sees("curl -X 'POST'", "/users", mail, "201", `"state": "pending"`)
}
