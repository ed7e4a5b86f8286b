-- name: PayOrder :execrows
update orders set paid = true where id = $1;
