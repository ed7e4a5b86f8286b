// A client of the user service whose types are made from its OpenAPI document. It takes one user through
// all that the API does.
import createClient from "openapi-fetch";
import type { components, paths } from "./out/api.js";

type Problem = components["schemas"]["Problem"];

const api = createClient<paths>({ baseUrl: process.argv[2] ?? "http://127.0.0.1:7400" });

function value<T>(answer: { data?: T; error?: Problem; response: Response }, want: number): T {
  if (answer.response.status !== want) {
    throw new Error(`${answer.response.url}: ${answer.response.status} ${answer.error?.code ?? ""}, want ${want}`);
  }
  return answer.data as T;
}

const email = `client-${Date.now()}@example.com`;
const [first, second] = ["correct horse battery", "a wholly different sentence"];

const user = value(await api.POST("/users", { body: { email, name: "Ann", password: first }, params: { header: { "Idempotency-Key": email } } }), 201);
const path = { id: user.id };

async function logIn(password: string): Promise<{ Authorization: string }> {
  const session = value(await api.POST("/sessions", { body: { email, password } }), 201);
  return { Authorization: `Bearer ${session.token}` };
}

let headers = await logIn(first);
const renamed = value(await api.PATCH("/users/{id}", { params: { path }, body: { name: "Anna" }, headers }), 200);
const read = value(await api.GET("/users/{id}", { params: { path }, headers }), 200);
if (renamed.name !== "Anna" || read.name !== "Anna") {
  throw new Error(`the user is called ${read.name}, want Anna`);
}
value(await api.PUT("/users/{id}/password", { params: { path }, body: { current_password: first, new_password: second }, headers }), 204);
value(await api.GET("/users/{id}", { params: { path }, headers }), 401);
headers = await logIn(second);
value(await api.GET("/users", { params: { query: { limit: 1 } }, headers }), 403);
value(await api.DELETE("/users/{id}", { params: { path }, headers }), 403);
